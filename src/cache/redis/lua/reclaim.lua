#!lua flags=allow-oom
-- Deletes some of the entries of an index that `close` detached, except those filled again since, and
-- at the end the detached index. Returns the next cursor, '0' at the end.
-- KEYS: the detached index, version.
-- ARGV: the cursor, the approximate number of entries to scan, the part before the member in an entry's key.
-- SSCAN, because SPOP takes longer the emptier the set's table gets.
local cursor, members = unpack(redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2]))
local version = redis.call('GET', KEYS[2])
local dead = {}
for _, member in ipairs(members) do
  local entry = ARGV[3] .. member
  if not version or redis.call('GETRANGE', entry, 0, 15) ~= version then
    dead[#dead + 1] = entry
  end
end
if cursor == '0' then
  dead[#dead + 1] = KEYS[1]
end
-- Lua's stack holds only some thousands of values.
for first = 1, #dead, 1000 do
  redis.call('UNLINK', unpack(dead, first, math.min(first + 999, #dead)))
end
return cursor
