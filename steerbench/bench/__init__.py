"""From a protocol to records."""
