"""What a network costs: operations counted by fvcore, latency measured, and the machine on which that was."""
