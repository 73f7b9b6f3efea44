"""What every HTTP process of the house needs, whatever it serves: connections with limits, who may come in, bodies with a budget,
errors in the shape of an API, metrics over several processes."""
