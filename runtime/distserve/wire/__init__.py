"""What two of the processes share: messages, frames, key check, ids, logging, tracing. No torch."""
