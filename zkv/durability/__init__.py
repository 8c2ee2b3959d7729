"""What makes data outlive the process; `zkv.durability.files` is its door to the file system."""
