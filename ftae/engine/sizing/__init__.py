"""What a run takes: parameters, bytes, seconds."""
