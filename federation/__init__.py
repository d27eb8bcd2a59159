"""What two nodes must agree on, byte for byte: ids, identity, events, frames, links, delivery."""
