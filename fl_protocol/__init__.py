"""What both sides say: messages, topics, codecs, signatures, transfer, and the transports that carry them."""
