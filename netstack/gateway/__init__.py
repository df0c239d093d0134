"""The host side: trio tasks that move frames and bytes between links, the engine and host sockets."""
