"""Linux and process plumbing. Standard library only: process 1 loads it."""
