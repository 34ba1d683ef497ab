--- The log of a server: one JSON object on each line.

local core = require "bough.core"
local errors = require "bough.error"
local json = require "bough.json"
local wire = require "bough.contree.wire"

local M = {}

---@class bough.serve.log
---@field private path string?
---@field private file file*?
---@field private tell fun(event: table)?
local log = {}
local log_meta = { __index = log, __name = "bough.serve.log" }

local function open(path)
  local file, message, number = io.open(path, "a")
  if not file then
    local kind = number == 13 and "denied" or number == 2 and "not_found" or "io"
    error(errors.new(kind, "serve", { errno = number }, "log: %s", message), 0)
  end
  file:setvbuf "line"
  return file
end

--- A log that goes to a path, a Lua file or a function, or nowhere.
---@param to string|file*|fun(event: table)|nil
---@return bough.serve.log
function M.new(to)
  local self = setmetatable({}, log_meta)
  if type(to) == "string" then
    self.path, self.file = to, open(to)
  elseif type(to) == "function" then
    self.tell = to
  else
    self.file = to
  end
  return self
end

--- Writes an event. A log that cannot be written must not stop the server: what it misses is lost.
---@param event table `event` names it; `time` is added
function log:put(event)
  if not self.file and not self.tell then return end
  event.time = wire.rfc3339(core.time())
  if self.tell then
    pcall(self.tell, event)
  else
    pcall(self.file.write, self.file, json.write(event), "\n")
  end
end

--- Opens the file anew, for whoever moved it away. What goes wrong leaves the old one open.
function log:reopen()
  if not self.path then return end
  local good, file = pcall(open, self.path)
  if not good then
    self:put { event = "log", error = file.message }
    return
  end
  self.file:close()
  self.file = file
end

--- Nothing is written from now on. Files of the caller's stay open.
function log:close()
  if self.path then self.file:close() end
  self.file, self.tell = nil, nil
end

return M
