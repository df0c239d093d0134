"""How a guest attaches: links that carry Ethernet frames in and out.

`link` is the interface; `transmit` what all links share. `unixgram`, `stream`, `seqpacket`, `vpnkit` and `tap` are
the transports, `listener` accepts the connected ones. `switch` joins several guests, `capture` is a tee into pcapng.
`namespaces` makes guests out of network namespaces, with `namespace_helper` as the process that is in them and
`device` for what is done there. `framing`, `unix_socket` and `heap` are what the transports stand on.
"""
