--- What an image calls its users and groups: its /etc/passwd and /etc/group.

local M = {}

local MOST_BYTES = 1 << 20 -- of one file
local MOST_IMAGES = 64 -- remembered

-- The beginning of a file, "" where there is none to be read.
local function beginning(image, path)
  local parts, bytes = {}, 0
  pcall(function()
    local pieces, _, _, _ <close> = image:stream(path)
    for piece in pieces do
      parts[#parts + 1], bytes = piece, bytes + #piece
      if bytes >= MOST_BYTES then break end
    end
  end)
  return table.concat(parts):sub(1, MOST_BYTES)
end

-- Number -> name; the first of several counts.
local function read(text)
  local found = {}
  for name, number in text:gmatch "([^:\n]+):[^:\n]*:(%d+)[^\n]*" do
    local id = #number <= 10 and math.tointeger(tonumber(number))
    if id and not found[id] then found[id] = name end
  end
  return found
end

--- The names of an image. Images never change, so those that were asked for last are remembered. Waits.
---@param app table
---@param image bough.image
---@return { users: table<integer, string>, groups: table<integer, string> }
function M.of(app, image)
  local memory = app.names or { count = 0, order = {}, known = {} }
  app.names = memory
  local known = memory.known[image.uuid]
  if known then return known end
  known = { users = read(beginning(image, "/etc/passwd")), groups = read(beginning(image, "/etc/group")) }
  if not memory.known[image.uuid] then
    memory.count = memory.count % MOST_IMAGES + 1
    local oldest = memory.order[memory.count]
    if oldest then memory.known[oldest] = nil end
    memory.order[memory.count] = image.uuid
  end
  memory.known[image.uuid] = known
  return known
end

return M
