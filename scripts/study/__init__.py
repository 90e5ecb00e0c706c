"""Many arms, several seeds, one table: `reg4pru study`."""
