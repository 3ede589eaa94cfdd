"""What runs inside the machine: Debian's kernel fetched by apt, and the demo shipped with the package."""
