"""How a guest attaches: links that carry Ethernet frames in and out."""
