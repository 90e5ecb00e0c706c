"""Many variants, several seeds, one table: `reg4pru study`."""
