"""What this machine has: memory, disk, processor, accelerators, versions; nothing heavy here."""
