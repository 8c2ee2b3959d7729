"""Log, snapshots, recovery and offline tools. All writes go through `zkv.durability.files`."""
