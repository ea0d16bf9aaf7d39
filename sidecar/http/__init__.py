"""HTTP for whoever connects, with a limit on everything. The client is in mounter/store/http."""
