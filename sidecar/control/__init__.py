"""The control half: from what is declared and asked for to a spec and a pod."""
