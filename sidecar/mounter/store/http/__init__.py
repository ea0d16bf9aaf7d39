"""HTTP to object stores: connections, time-outs, retries."""
