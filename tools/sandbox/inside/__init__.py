"""What runs inside a sandbox: standard library only, because nothing else of ours is visible there."""
