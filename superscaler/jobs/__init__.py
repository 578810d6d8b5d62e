"""Jobs: how the processes of a build are started on many machines, as text to be run there."""
