#!lua flags=allow-oom
-- Drops some of the entries that `close` detached, but none that has been filled again since.
-- Answers how many members it took. KEYS: the detached set, version.
-- ARGV: the part before the member in an entry's key, how many to take.
local members = redis.call('SPOP', KEYS[1], ARGV[2])
local version = redis.call('GET', KEYS[2])
local dead = {}
for _, member in ipairs(members) do
  local entry = ARGV[1] .. member
  if not version or redis.call('GETRANGE', entry, 0, 15) ~= version then
    dead[#dead + 1] = entry
  end
end
if #dead > 0 then
  redis.call('UNLINK', unpack(dead))
end
return #members
