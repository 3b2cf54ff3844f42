#!lua flags=allow-oom
-- Takes a write's notes away, and drops the versions again: if a note was lost meanwhile, a reader
-- may have opened the tag before the commit. What was filled then is dead without its version.
-- KEYS: of each tag its version and writers; of one tag alone in a Cluster. ARGV: the write.
for i = 1, #KEYS, 2 do
  redis.call('ZREM', KEYS[i + 1], ARGV[1])
  redis.call('DEL', KEYS[i])
end
