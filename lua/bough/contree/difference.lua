--- What differs between two images on a ConTree service: two walks side by side, and the contents of files that could
--- be the same.
--
-- Files of one size and one time that are older than the point where the images parted are taken for the same: nothing
-- has written to them since. Of all others of one size the contents are compared, as they come.

local errors = require "bough.error"
local walk = require "bough.contree.walk"
local work = require "bough.contree.work"

local M = {}

local WIDTH = 4 -- pairs of files at a time
local GENERATIONS = 100 -- how far back a common ancestor is looked for
local SKEW = 60 -- seconds that the clocks of sandboxes may be behind

-- Where they parted ------------------------------------------------------------------------------------

-- When the youngest image was made that both come from; nil when none is found.
local function parted_at(driver, uuid, other)
  local seen = {}
  local ends = { uuid, other }
  for _ = 1, GENERATIONS do
    for i = 1, 2 do
      local at = ends[i]
      if at then
        local row = driver:resolve(at)
        if not row then
          if at == uuid or at == other then errors.raise("not_found", "diff", "no image %s", at) end
          ends[i] = nil
        elseif seen[at] and seen[at] ~= i then
          return row.created_at
        else
          seen[at], ends[i] = i, row.parent_uuid
        end
      end
    end
    if not ends[1] and not ends[2] then return nil end
  end
  return nil
end

-- Contents ---------------------------------------------------------------------------------------------

-- Whether both streams give the same bytes.
local function same_bytes(a, b)
  local x, y = "", ""
  while true do
    if x == "" then x = a:read() or nil end
    if y == "" then y = b:read() or nil end
    if not x or not y then return x == y end
    local size = math.min(#x, #y)
    if x:sub(1, size) ~= y:sub(1, size) then return false end
    x, y = x:sub(size + 1), y:sub(size + 1)
  end
end

local function same_content(driver, uuid, other, path)
  local ours <close> = driver:open(uuid, path)
  local theirs <close> = driver:open(other, path)
  return same_bytes(ours, theirs)
end

-- Records ----------------------------------------------------------------------------------------------

local function change(op, ours, theirs, what)
  local row = ours or theirs
  return {
    op = op, path = "/" .. row.path, what = what or {},
    kind = ours and ours.kind, mode = ours and ours.mode, size = ours and ours.size,
    old_kind = theirs and theirs.kind, old_mode = theirs and theirs.mode, old_size = theirs and theirs.size,
  }
end

-- What two entries of one path differ in, but for contents of the same size; and whether those are to be compared.
local function compare(ours, theirs, parted)
  local what, is_open = {}, false
  local function note(differs, word)
    if differs then what[#what + 1] = word end
  end
  local kind = ours.kind
  if kind ~= theirs.kind then
    what[1] = "type"
    note(kind ~= "symlink" and theirs.kind ~= "symlink" and ours.mode ~= theirs.mode, "mode")
  elseif kind == "symlink" then
    if ours.symlink_to ~= theirs.symlink_to then what[1], what[2] = "content", "target" end
  else
    if kind == "file" then
      note(ours.size ~= theirs.size, "content")
      local is_old = parted and ours.mtime == theirs.mtime and ours.mtime < parted - SKEW
      is_open = ours.size == theirs.size and ours.size > 0 and not is_old
    end
    note(ours.mode ~= theirs.mode, "mode")
  end
  note(ours.uid ~= theirs.uid or ours.gid ~= theirs.gid, "owner")
  return what, is_open
end

local function all() return true end

-- A walk, and the sorting key of its next entry.
local function side(driver, uuid)
  local steps = walk.start(driver, uuid, "/", all)
  local made = { steps = steps }
  function made.next()
    made.row = steps:next()
    made.key = made.row and made.row.path:gsub("/", "\0")
  end
  return setmetatable(made, { __close = function() steps:close() end })
end

local function pairs_of(driver, uuid, other, visit)
  local ours <close> = side(driver, uuid)
  local theirs <close> = side(driver, other)
  ours.next()
  theirs.next()
  while ours.row or theirs.row do
    local first = not theirs.row or (ours.row and ours.key <= theirs.key)
    local second = not ours.row or (theirs.row and theirs.key <= ours.key)
    visit(first and ours.row or nil, second and theirs.row or nil)
    if first then ours.next() end
    if second then theirs.next() end
  end
end

--- What `uuid` has that `other` has not, lacks, or has otherwise. Devices and extended attributes are not compared: the
--- service does not tell of them. Waits.
---@param driver table
---@param uuid string
---@param other string
---@return table[] records
function M.run(driver, uuid, other)
  local parted = parted_at(driver, uuid, other)
  local records, open = {}, {}
  pairs_of(driver, uuid, other, function(ours, theirs)
    if not theirs then
      records[#records + 1] = change("added", ours)
    elseif not ours then
      records[#records + 1] = change("deleted", nil, theirs)
    else
      local what, is_open = compare(ours, theirs, parted)
      local record = (what[1] or is_open) and change("changed", ours, theirs, what)
      if what[1] then records[#records + 1] = record end
      if is_open then open[#open + 1] = record end
    end
  end)
  work.each(#open, WIDTH, function(i)
    local record = open[i]
    if same_content(driver, uuid, other, record.path) then return end
    if not record.what[1] then records[#records + 1] = record end
    table.insert(record.what, 1, "content")
  end)
  return records
end

return M
