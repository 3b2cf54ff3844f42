#!lua flags=allow-oom
-- Removes a write from the writers of its tags, and deletes the versions again: if the writers were lost
-- meanwhile, a reader may have opened a tag before the commit, and its fills are dead without the version.
-- KEYS: the versions of all tags, then their writers. In a Cluster one tag only. ARGV: the write.
local tags = #KEYS / 2
for i = tags + 1, #KEYS do
  redis.call('ZREM', KEYS[i], ARGV[1])
end
redis.call('DEL', unpack(KEYS, 1, tags))
