"""What is computed: graphs of operators on logical tensors, from tracing to text."""
