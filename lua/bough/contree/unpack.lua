--- An archive that comes as a stream, into a directory of this machine.
--
-- bough-unpack does it, in its jail: whoever made the archive need not be trusted. Names in it count from the image's
-- root, so it is unpacked beside the directory, and what was asked for is moved there.

local core = require "bough.core"
local errors = require "bough.error"
local host = require "bough.host"

local M = {}

local raise, quote = errors.raise, errors.quote

local PIECE = 256 << 10

local kinds = {}
for _, kind in ipairs(core.kinds) do kinds[kind] = true end

-- The program is where core.so is, as the others are.
local function program()
  local given = os.getenv "BOUGH_UNPACK"
  if given and given ~= "" then return given end
  local library = package.searchpath("bough.core", package.cpath)
  local path = library and library:gsub("[^/]*$", "") .. "bough-unpack"
  if path and not path:find("/", 1, true) then path = "./" .. path end
  if not path or not core.fs.stat(path) then
    raise("not_found", "download", "%s: no program there; it belongs beside core.so, or where $BOUGH_UNPACK says",
      path or "bough-unpack")
  end
  return path
end

-- Its last line: "ok BYTES FILES SKIPPED" or "err KIND ERRNO MESSAGE".
local function read_report(text, ending)
  local line = text:match "([^\n]+)\n?$" or ""
  local bytes, files, skipped = line:match "^ok (%d+) (%d+) (%d+)"
  if bytes then
    return { bytes = math.tointeger(bytes), files = math.tointeger(files), skipped = math.tointeger(skipped) }
  end
  local kind, number, message = line:match "^err (%S+) (%d+) (.*)$"
  if not kind then raise("io", "download", "bough-unpack ended without a report (%s)", ending) end
  local errno = number ~= "0" and math.tointeger(number) or nil
  error(errors.new(kinds[kind] and kind or "io", "download", { errno = errno }, "%s", message), 0)
end

-- Passes the stream on until one of the two ends; returns why the stream failed, if it did.
local function feed(stream, process, told)
  while true do
    local good, piece = pcall(stream.read, stream, PIECE)
    if not good then return piece end
    if not piece then break end
    local taken, problem = pcall(process.stdin.write, process.stdin, piece)
    if not taken then
      if errors.is(problem, "closed") then return nil end -- it says why itself
      return problem
    end
    told.done = told.done + #piece
  end
  local closed, problem = pcall(function() process.stdin:close() end)
  return not closed and not errors.is(problem, "closed") and problem or nil
end

local function run(stream, work, told)
  local process <close> = host.popen {
    "/bin/sh", "-c", 'exec "$0" --plain --in-fd 0 --out-fd 3 --report-fd 1 3<"$1"', program(), work,
    stdin = core.PIPE, stdout = true, stderr = true,
  }
  local failure = feed(stream, process, told)
  if failure ~= nil then error(failure, 0) end
  process:wait()
  local result = process.result
  return read_report(result.stdout or "", errors.ending(result))
end

-- The directory in what was unpacked, with no link on the way there.
local function find(work, path)
  local at = work
  for name in path:gmatch "[^/]+" do
    at = at .. "/" .. name
    local found = core.fs.stat(at, true)
    if not found or found.kind ~= "dir" then
      raise("protocol", "download", "the service sent an archive without %s", quote(path))
    end
  end
  return at
end

--- Unpacks a tree. Waits.
---@param stream { read: fun(self, n: integer): string? }
---@param path string of the tree in the image, as it is in the archive
---@param directory string local and empty
---@param told bough.contree.progress
---@return { bytes: integer, files: integer, skipped: integer }
function M.tree(stream, path, directory, told)
  if not path:find "[^/]" then return run(stream, directory, told) end
  local work = core.fs.temp_dir(directory .. ".bough-unpack")
  local _ <close> = setmetatable({}, { __close = function() core.fs.remove(work) end })
  local result = run(stream, work, told)
  core.fs.rename(find(work, path), directory)
  return result
end

return M
