"""What operators see of a running server. It waits for no reader."""
