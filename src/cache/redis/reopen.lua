#!lua flags=allow-oom
-- Takes a write's note away, and drops the version again: if the note was lost meanwhile, a reader
-- may have opened the tag before the commit. What was filled then is dead without its version.
-- KEYS: version, writers. ARGV: the write.
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
