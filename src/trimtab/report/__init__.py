"""What a run looks like: charts as inline SVG. Standard library only, no other part of trimtab."""
