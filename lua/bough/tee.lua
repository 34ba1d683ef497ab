--- Where output goes besides: `bough.tee`, and the sinks that Lua code writes to.
--
-- A path is written under another name, which it sheds at the end: it is there whole or not at all.

local core = require "bough.core"
local check = require "bough.check"
local errors = require "bough.error"

local M = {}

local raise, quote = errors.raise, errors.quote

local LINES_A_TURN = 2048 -- given to a function before others get a turn

-- -- what a sink is ----------------------------------------------------------------------------------

local function class_of(value)
  local meta = getmetatable(value)
  return type(meta) == "table" and rawget(meta, "__name") or nil
end

---@class bough.sink a checked sink
---@field kind "path"|"file"|"writer"|"function"
---@field value any
---@field text string for people
---@field lines boolean functions get whole lines

--- Checks a sink; nil when `value` is none.
---@param value any path, bough.file(path), a Lua file, a writer, function(chunk)
---@param op string
---@param opts { paths: boolean?, text: "lines"|nil }? paths: strings are paths
---@return bough.sink?
function M.sink(value, op, opts)
  local lines = check.text(opts and opts.text, op) == "lines"
  local kind, text
  local class = class_of(value)
  if type(value) == "string" and opts and opts.paths then
    kind, value = "path", check.output(value, op, "the sink")
    text = value
  elseif class == "bough.file" then
    kind, value = "path", check.output(value, op, "the sink")
    text = ("file(%s)"):format(quote(value))
  elseif io.type(value) then
    kind, text = "file", "a file"
    check.output(value, op, "the sink") -- refuses closed ones
  elseif class == "bough.writer" then
    kind, text = "writer", "a writer"
  elseif type(value) == "function" then
    kind, text = "function", M.describe(value)
  else
    return nil
  end
  if lines and kind ~= "function" then
    raise("invalid", op, 'text = "lines" goes with a function, which gets them one by one')
  end
  return { kind = kind, value = value, text = text, lines = lines }
end

--- One word for a function: where it is from.
---@param fn function
---@return string
function M.describe(fn)
  local info = debug.getinfo(fn, "S")
  if info.what == "C" then return "function" end
  return ("function %s:%d"):format(info.short_src, info.linedefined)
end

-- -- sinks being written -------------------------------------------------------------------------------

local kinds_of = { -- by errno
  [2] = "not_found", [20] = "not_found", [13] = "denied", [28] = "resource", [24] = "resource",
}

local function file_failed(path, message, number)
  local reason = message and message:gsub("^.*: ", "") or "cannot be written"
  error(errors.new(kinds_of[number] or "io", "tee", { errno = number }, "output %s: %s",
    path and quote(path) or "file", reason), 0)
end

-- Each has write(chunk), finish(), which ends it well, and drop(), which leaves no trace.
local openers = {}

function openers.path(sink)
  local path = sink.value
  local temp = ("%s.%016x"):format(path, math.random(0))
  local file, message, number = io.open(temp, "wb")
  if not file then file_failed(path, message, number) end
  local made = {}
  function made.drop()
    if file then
      file:close()
      os.remove(temp)
      file = nil
    end
  end
  function made.write(chunk)
    local good, why, code = file:write(chunk)
    if not good then file_failed(path, why, code) end
  end
  function made.finish()
    local closing = file
    file = nil
    local good, why, code = closing:close()
    if good then good, why, code = os.rename(temp, path) end
    if not good then
      os.remove(temp)
      file_failed(path, why, code)
    end
  end
  return made
end

function openers.file(sink)
  local file = sink.value
  local function put(method, ...)
    if io.type(file) ~= "file" then raise("closed", "tee", "the file was closed meanwhile") end
    local good, why, code = file[method](file, ...)
    if not good then file_failed(nil, why, code) end
  end
  return {
    write = function(chunk) put("write", chunk) end,
    finish = function() put "flush" end,
    drop = function() end,
  }
end

-- Whoever reads there may end early, as behind a pipe: then it gets no more.
function openers.writer(sink)
  local writer = sink.value
  local made = {}
  function made.write(chunk)
    if not writer then return end
    local good, problem = pcall(writer.write, writer, chunk)
    if good then return end
    if not errors.is(problem, "closed") then error(problem, 0) end
    made.drop()
  end
  function made.drop()
    if writer then writer:close() end
    writer = nil
  end
  made.finish = made.drop
  return made
end

openers["function"] = function(sink)
  local fn = sink.value
  if not sink.lines then
    return { write = function(chunk) fn(chunk) end, finish = function() end, drop = function() end }
  end
  local rest = {} -- parts of a line without its newline
  local count = 0
  return {
    write = function(chunk)
      local at = 1
      while true do
        local newline = chunk:find("\n", at, true)
        if not newline then break end
        rest[#rest + 1] = chunk:sub(at, newline - 1)
        local line = table.concat(rest)
        rest, at = {}, newline + 1
        fn(line)
        count = count + 1
        if count % LINES_A_TURN == 0 then core.sleep(0) end
      end
      if at <= #chunk then rest[#rest + 1] = chunk:sub(at) end
    end,
    finish = function()
      if rest[1] then fn(table.concat(rest)) end
    end,
    drop = function() end,
  }
end

---@class bough.sinks several sinks, open
---@field private list table[]
local sinks = {}
local sinks_meta = { __index = sinks }

--- Opens sinks; leaves no file when one cannot be.
---@param list bough.sink[]
---@return bough.sinks
function M.open(list)
  local opened = setmetatable({ list = {} }, sinks_meta)
  for i, sink in ipairs(list) do
    local good, made = pcall(openers[sink.kind], sink)
    if not good then
      opened:drop()
      error(made, 0)
    end
    opened.list[i] = made
  end
  return opened
end

function sinks:write(chunk)
  for _, sink in ipairs(self.list) do sink.write(chunk) end
end

--- Ends them. The first error is raised when all have been ended.
function sinks:finish()
  local list, problem = self.list, nil
  self.list = {}
  for _, sink in ipairs(list) do
    local good, why = pcall(sink.finish)
    if not good and problem == nil then problem = why end
  end
  if problem ~= nil then error(problem, 0) end
end

--- Gives them up: what was to be whole is not there.
function sinks:drop()
  local list = self.list
  self.list = {}
  for _, sink in ipairs(list) do pcall(sink.drop) end
end

sinks_meta.__close = sinks.drop

--- Copies a stream to its end. `output` may end before: the sinks get all of it nevertheless.
---@param input bough.reader
---@param output bough.writer? closed at the end of the input
---@param opened bough.sinks ended well at the end of the input, given up at an error
---@param settled fun(): boolean called at the end of the input: whether that was the end of the data
function M.copy(input, output, opened, settled)
  local open <close> = opened
  while true do
    local chunk = input:read "c"
    if not chunk then break end
    open:write(chunk)
    if output then
      local good, problem = pcall(output.write, output, chunk)
      if not good then
        if not errors.is(problem, "closed") then error(problem, 0) end
        output = nil
      end
    end
  end
  if output then output:close() end
  if settled() then open:finish() end
end

-- -- bough.tee -----------------------------------------------------------------------------------------

---@class bough.tee a stage that passes on what it gets, and copies it
---@operator bor(any): bough.pipeline
local meta = { __name = "bough.tee" }
M.meta = meta -- pipeline.lua adds its operator

local DATA = {}

local function is_options(value)
  return type(value) == "table" and getmetatable(value) == nil
end

--- A stage of a pipeline that copies what passes: `cmd | bough.tee("log") | cmd`.
---@param ... string|table|file*|bough.writer|function sinks: a path (there whole at the end, or not at all),
---  a Lua file, a writer (closed at the end), function(chunk); last { text = "lines" }: functions get lines
---@return bough.tee
function M.new(...)
  local given = table.pack(...)
  local opts = is_options(given[given.n]) and given[given.n] or nil
  if opts then given.n = given.n - 1 end
  local text = errors.check_keys("tee", opts, { "text" }).text
  if given.n < 1 then
    raise("invalid", "tee", "expected at least one sink: a path, a Lua file, a writer or a function")
  end
  local list, words = {}, { "tee" }
  for i = 1, given.n do
    local lines = type(given[i]) == "function" and text or nil
    local sink = M.sink(given[i], "tee", { paths = true, text = lines })
    if not sink then
      raise("invalid", "tee", "sink %d must be a path, a Lua file, a writer or a function, got %s", i,
        quote(given[i]))
    end
    list[i], words[i + 1] = sink, sink.text
  end
  return setmetatable({ [DATA] = { kind = "tee", sinks = list, text = table.concat(words, " ") } }, meta)
end

--- The stage in a `bough.tee`, nil for anything else.
---@param value any
---@return table?
function M.stage(value) return type(value) == "table" and rawget(value, DATA) or nil end

function meta:__tostring() return rawget(self, DATA).text end

function meta:__newindex()
  raise("invalid", "tee", "a tee never changes: make another")
end

return M
