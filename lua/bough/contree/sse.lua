--- Server-sent events, taken apart as they come.

local errors = require "bough.error"

local M = {}

--- The longest line or frame that is taken, in bytes.
M.most_bytes = 4 << 20

---@class bough.contree.frame
---@field id integer? nil where the frame has none, or none that is an integer
---@field event string? the name that the frame gives
---@field data string never empty; several lines are joined by LF

---@class bough.contree.sse
---@field id integer? of the last frame that was complete, one that is no event too
---@field private op string
---@field private rest string[] pieces of a line that is not complete
---@field private rest_size integer
---@field private size integer of the lines of the frame so far
local parser = {}
local parser_meta = { __index = parser, __name = "bough.contree.sse" }

--- A parser for one stream.
---@param op string? for messages
---@return bough.contree.sse
function M.parser(op)
  return setmetatable({ op = op or "events", rest = {}, rest_size = 0, size = 0 }, parser_meta)
end

local function check(self)
  if self.size + self.rest_size > M.most_bytes then
    errors.raise("protocol", self.op, "an event of more than %d MiB", M.most_bytes >> 20)
  end
end

-- An integer, or nil.
local function number(text)
  return text:find "^%-?%d+$" and math.tointeger(tonumber(text)) or nil
end

-- One line that is not empty.
local function take(self, line)
  local colon = line:find(":", 1, true)
  if colon == 1 then return end
  self.size = self.size + #line
  check(self)
  local name, value = line, ""
  if colon then
    name = line:sub(1, colon - 1)
    value = line:sub(line:byte(colon + 1) == 0x20 and colon + 2 or colon + 1)
  end
  if name == "data" then
    local data = self.data
    if data == nil then
      self.data = value
    elseif type(data) == "table" then
      data[#data + 1] = value
    else
      self.data = { data, value }
    end
  elseif name == "event" then
    self.event = value
  elseif name == "id" then
    self.next_id = number(value)
  end
end

-- The blank line at the end of a frame.
local function finish(self, frames)
  local data, id = self.data, self.next_id
  if type(data) == "table" then data = table.concat(data, "\n") end
  if id then self.id = id end
  if data and data ~= "" then frames[#frames + 1] = { id = id, event = self.event, data = data } end
  self.data, self.event, self.next_id, self.size = nil, nil, nil, 0
end

-- A whole frame as services write them, from `at` on: taken in one go. Returns where the next one begins, or nil for
-- what must be looked at line by line.
local function whole(self, chunk, at, frames)
  local id, event, from = string.match(chunk, "^id: (%d+)\nevent: ([%w_]+)\ndata: ()", at)
  if not id then return nil end
  local stop = string.find(chunk, "\n", from, true)
  if not stop or stop == from or stop - at >= M.most_bytes then return nil end
  if string.byte(chunk, stop + 1) ~= 0x0A or string.byte(chunk, stop - 1) == 0x0D then return nil end
  id = number(id)
  if id then self.id = id end
  frames[#frames + 1] = { id = id, event = event, data = string.sub(chunk, from, stop - 1) }
  return stop + 2
end

--- Takes the next bytes of the stream, cut anywhere.
---@param chunk string
---@return bough.contree.frame[] frames that are complete now; comments, empty frames and those with only an id are none
function parser:feed(chunk)
  local frames = {}
  local at = 1
  local find, sub, byte = string.find, string.sub, string.byte
  while true do
    if self.size == 0 and self.rest_size == 0 then
      local behind = whole(self, chunk, at, frames)
      while behind do
        at = behind
        behind = whole(self, chunk, at, frames)
      end
    end
    local stop = find(chunk, "\n", at, true)
    if not stop then break end
    local last = stop - 1
    if self.rest_size > 0 then
      self.rest[#self.rest + 1] = sub(chunk, at, last)
      local line = table.concat(self.rest)
      self.rest, self.rest_size = {}, 0
      if byte(line, -1) == 0x0D then line = sub(line, 1, -2) end
      if line == "" then finish(self, frames) else take(self, line) end
    else
      if last >= at and byte(chunk, last) == 0x0D then last = last - 1 end
      if last < at then finish(self, frames) else take(self, sub(chunk, at, last)) end
    end
    at = stop + 1
  end
  if at <= #chunk then
    self.rest[#self.rest + 1] = at == 1 and chunk or sub(chunk, at)
    self.rest_size = self.rest_size + #chunk - at + 1
    check(self)
  end
  return frames
end

return M
