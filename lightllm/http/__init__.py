"""What every HTTP process of the house needs, whatever it serves: connections with limits, keys, bodies with a budget,
errors in the shape of an API, metrics over several processes."""
