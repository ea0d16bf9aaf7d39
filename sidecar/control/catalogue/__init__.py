"""From what the admin declares and a run selects to a spec. Pure."""
