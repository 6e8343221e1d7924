"""The fast engine: vector code for x86 CPUs."""
