"""The admission server and its certificate."""
