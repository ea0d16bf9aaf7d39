"""Files and directories as the kernel knows them, and which names lead to them."""
