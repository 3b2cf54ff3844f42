#!lua flags=allow-oom
-- Reads a tag's version and an entry at one moment. KEYS: version, entry.
return redis.call('MGET', KEYS[1], KEYS[2])
