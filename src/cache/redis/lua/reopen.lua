#!lua flags=allow-oom
-- Takes a write's notes away, and drops the versions again: if a note was lost meanwhile, a reader
-- may have opened the tag before the commit. What was filled then is dead without its version.
-- KEYS: of all tags the versions, then the writers; of one tag alone in a Cluster. ARGV: the write.
local tags = #KEYS / 2
for i = tags + 1, #KEYS do
  redis.call('ZREM', KEYS[i], ARGV[1])
end
redis.call('DEL', unpack(KEYS, 1, tags))
