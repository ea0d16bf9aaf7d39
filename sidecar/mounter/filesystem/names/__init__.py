"""What the store says of names, what this mount changed of them, and how they are kept."""
