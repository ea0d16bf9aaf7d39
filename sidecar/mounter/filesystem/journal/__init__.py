"""What a successor must know of a mount, written before a call is answered."""
