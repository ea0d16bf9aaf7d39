"""HTTP to object stores: connections, time-outs, retries. Knows no cloud."""
