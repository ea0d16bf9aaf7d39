"""What is declared and what a run selects, to a spec. Pure."""
