--- Looking into images on a ConTree service, and taking things out of them. None of this starts a sandbox.

local core = require "bough.core"
local difference = require "bough.contree.difference"
local errors = require "bough.error"
local globs = require "bough.contree.globs"
local grep = require "bough.contree.grep"
local tree = require "bough.contree.tree"
local unpack = require "bough.contree.unpack"
local walk = require "bough.contree.walk"
local wire = require "bough.contree.wire"
local work = require "bough.contree.work"

local M = {}

local raise = errors.raise

local MOST_READ = 2 << 30 -- bytes, in one string
local PIECE = 256 << 10
local BATCH = 512 -- records

---@class bough.contree.inspect methods of the driver, which has `api`
local methods = {}
M.methods = methods

local function call_of(op, uuid, what, path)
  return {
    op = op, path = ("/inspect/%s/%s"):format(wire.escape(uuid), what), query = { { "path", path } }, raw = true,
  }
end

-- Files ----------------------------------------------------------------------------------------------

--- The content of a file. Waits. Raises `not_found`, and `invalid` for what is no regular file.
---@param uuid string
---@param path string
---@return string
function methods:read(uuid, path)
  return (tree.along(self, uuid, path, "file", function(real)
    local call = call_of("read", uuid, "download", real)
    call.max_bytes, call.timeout = MOST_READ, math.huge -- it is silence that ends it, not time
    return self.api:call(call).body
  end))
end

-- Nobody says whose names are in the archive of a link, so there is none of a link.
local function open_archive(self, op, uuid, path)
  local real = tree.locate(self, uuid, path)
  local call = call_of(op, uuid, "archive", real)
  call.raw = nil
  return self.api:open(call), real
end

local function size_of(stream)
  if stream.headers["content-encoding"] then return nil end
  return math.tointeger(tonumber(stream.headers["content-length"]))
end

---@class bough.contree.file: bough.blob_stream
---@field private stream userdata
local file = {}
local file_meta = { __index = file, __name = "bough.blob_stream" }

--- What is there, at most `n` bytes; nil at the end. Waits. A content that is cut short is an error.
---@param n integer? default 256 KiB
---@return string?
function file:read(n) return self.stream:read(n or PIECE) end

function file:close() self.stream:close() end

file_meta.__close = file.close

--- A file as it comes. Waits for its beginning.
---@param uuid string
---@param path string
---@return bough.blob_stream stream its `size` is nil where it comes compressed and nothing was listed
function methods:open(uuid, path)
  local stream = tree.along(self, uuid, path, "file", function(real)
    local call = call_of("stream", uuid, "download", real)
    call.raw = nil
    return self.api:open(call)
  end)
  return setmetatable({ stream = stream, size = size_of(stream) }, file_meta)
end

--- A file to a local path where nothing is. Does not wait.
---@param uuid string
---@param path string
---@param destination string
---@return bough.job job its result { bytes }
function methods:save(uuid, path, destination)
  return work.job("save", function(told)
    local row = tree.stat(self, uuid, path) -- mostly known: whoever downloads looked what it is
    told.total = row.size
    local sink <close> = core.sink(destination)
    tree.along(self, uuid, path, "file", function(real)
      local call = call_of("download", uuid, "download", real)
      call.sink, call.on_transfer = sink, function() told.done = sink.size end
      return self.api:call(call)
    end)
    sink:sha256() -- waits until all is in the file
    told.done = sink.size
    return { bytes = sink.size }
  end)
end

-- Directories ----------------------------------------------------------------------------------------

--- What is in a directory, in no order. Waits. Raises `not_found`, and `invalid` for what is none.
---@param uuid string
---@param path string
---@return table[] rows
function methods:list_dir(uuid, path) return (tree.list(self, uuid, path)) end

--- Iterates over a tar archive of a file or a tree. Waits for its beginning; leaving the loop ends it.
---@param uuid string
---@param path string
---@return fun(): string?
function methods:archive(uuid, path)
  local stream = open_archive(self, "archive", uuid, path)
  return function() return stream:read(PIECE) end, nil, nil, stream
end

--- A tree into an empty local directory: without owners, setuid bits and fifos; devices and sockets stay behind. Does
--- not wait.
---@param uuid string
---@param path string
---@param directory string
---@return bough.job job its result { bytes, files, skipped }
function methods:extract(uuid, path, directory)
  return work.job("extract", function(told)
    local stream <close>, real = open_archive(self, "download", uuid, path)
    return unpack.tree(stream, real, directory, told)
  end)
end

-- Looking --------------------------------------------------------------------------------------------

local flags = { ["--fixed"] = "fixed", ["--ignore-case"] = "ignore_case", ["--progress"] = "progress" }
local lists = { ["-e"] = "patterns", ["--path"] = "paths", ["--glob"] = "globs" }
local numbers = {
  ["--before"] = "before", ["--after"] = "after", ["--max-count"] = "max_count", ["--max-total"] = "max_total",
  ["--max-depth"] = "max_depth", ["--max-line"] = "max_line",
}

-- The arguments of bough-look as a table.
local function wanted_of(args)
  local wanted = { patterns = {}, paths = {}, globs = {} }
  local i = 2
  while args[i] do
    local option = args[i]
    if flags[option] then
      wanted[flags[option]] = true
    else
      i = i + 1
      local value = args[i]
      local list = lists[option]
      if value == nil then raise("invalid", args[1], "%s: its value is missing", option) end
      if list then
        wanted[list][#wanted[list] + 1] = value
      elseif numbers[option] then
        wanted[numbers[option]] = math.tointeger(tonumber(value))
      elseif option == "--kind" then
        wanted.kinds = value
      else
        raise("invalid", args[1], "%s: unknown option %s", args[1], option)
      end
    end
    i = i + 1
  end
  if not wanted.paths[1] then wanted.paths[1] = "/" end
  return wanted
end

local letters = { file = "f", dir = "d", symlink = "l", fifo = "p", socket = "s", other = "o" }

---@class bough.contree.look: bough.look
---@field private step fun(): table[]? the next records
---@field private stop fun()
---@field private counts any[]
local look = {}
local look_meta = { __index = look, __name = "bough.look" }

--- The next records, nil behind the last. Waits. Raises what stopped it.
---@return table[]?
function look:next()
  if self.closed then raise("closed", "look", "the search is closed") end
  return self.step()
end

--- Three counts, after the end.
function look:numbers() return self.counts[1], self.counts[2], self.counts[3] end

function look:close()
  if self.closed then return end
  self.closed = true
  self.stop()
end

look_meta.__close = look.close

-- The one record of a start that is no directory, or is not entered.
local function lone(self, uuid, path)
  local row = tree.stat(self, uuid, path)
  row.name, row.path = "", ""
  return row
end

-- A walk, or nil and what is there where that is no directory.
local function walk_or_row(self, uuid, path, wanted, filter)
  local depth = wanted.max_depth or math.huge
  if depth == 0 then return nil, lone(self, uuid, path) end
  local good, steps = pcall(walk.start, self, uuid, path, function(row, at)
    return at < depth and filter:enter(row.path, row.name, at)
  end)
  if good then return steps end
  if not errors.is(steps, "invalid") then error(steps, 0) end
  local row = lone(self, uuid, path)
  if row.kind == "dir" then error(steps, 0) end
  return nil, row
end

local function list(self, uuid, args)
  local wanted = wanted_of(args)
  local path, filter = wanted.paths[#wanted.paths], globs.new(wanted.globs)
  local counts, most = { 0, 0, 0 }, wanted.max_count or math.huge
  local steps, row, over
  local function fits(found)
    return (not wanted.kinds or wanted.kinds:find(letters[found.kind], 1, true) ~= nil)
      and filter:want(found.path, found.name, found.kind == "dir")
  end
  local function step()
    if over then return nil end
    if not steps then
      steps, row = walk_or_row(self, uuid, path, wanted, filter)
      if row then
        counts[1], over = 1, true
        return { row }
      end
    end
    local batch = {}
    while #batch < BATCH do
      local found = steps:next()
      if not found then break end
      if fits(found) then
        if counts[1] == most then
          counts[2] = 1
          break
        end
        counts[1] = counts[1] + 1
        batch[#batch + 1] = found
      end
    end
    over = #batch < BATCH
    return batch[1] and batch or nil
  end
  return step, function()
    if steps then steps:close() end
  end, counts
end

local function all_at_once(counts, run)
  local done = false
  return function()
    if done then return nil end
    local records = run()
    done = true
    return records[1] and records or nil
  end, function() end, counts
end

local commands = { list = list }

function commands.grep(self, uuid, args)
  local wanted, counts = wanted_of(args), { 0, 0, nil }
  return all_at_once(counts, function()
    local records, found = grep.run(self, uuid, wanted)
    counts[1], counts[2], counts[3] = found.matches, found.truncated and 1 or 0, found.files
    return records
  end)
end

function commands.diff(self, uuid, args, opts)
  local _, counts = wanted_of(args), { 0, 0, 0 }
  local place = { added = 1, changed = 2, deleted = 3 }
  return all_at_once(counts, function()
    local records = difference.run(self, uuid, opts.other)
    for _, record in ipairs(records) do counts[place[record.op]] = counts[place[record.op]] + 1 end
    return records
  end)
end

--- Looks through a tree, as bough-look does with these arguments. Does not wait.
---@param uuid string
---@param args string[] "list", "grep" or "diff" and options
---@param opts { other: string? }? for diff: the other image
---@return bough.look
function methods:look(uuid, args, opts)
  local command = commands[args[1]]
  if not command then raise("unsupported", "look", "the service cannot look through images that way: %s", args[1]) end
  local step, stop, counts = command(self, uuid, args, opts or {})
  return setmetatable({ step = step, stop = stop, counts = counts, closed = false }, look_meta)
end

return M
