"""trimtab against TRL and against the machine's own limit; see README.md beside this file."""
