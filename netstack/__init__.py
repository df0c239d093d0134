"""netstack: a userspace network stack behind a VM's network card."""
