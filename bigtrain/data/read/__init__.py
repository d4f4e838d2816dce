"""Index -> a stream of batches: the order (`order`), reading and decoding (`reader`), workers (`loader`), the stream itself."""
