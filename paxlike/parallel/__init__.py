"""Where arrays live: the alphabet of dimensions, the sharding rules, the mesh, host batches onto devices."""
