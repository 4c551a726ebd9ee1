"""How a job changes: leases, transitions, launches, and the periodic repair of what no worker works on."""
