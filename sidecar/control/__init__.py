"""The control half: from what admins declare and users ask for to a spec and a pod."""
