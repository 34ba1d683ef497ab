--- Copying a file out of an image: under a temporary name beside its destination, then renamed, so
-- that a failure leaves nothing half-written.

local errors = require "bough.error"

local M = {}

local function fail(path, message, number)
  local kind = number == 2 and "not_found" or number == 13 and "denied" or number == 28 and "resource"
    or "io"
  error(errors.new(kind, "download", { errno = number }, "%s",
    tostring(message or (path .. ": cannot write"))), 0)
end

local function is_directory(path)
  local file = io.open(path .. "/.", "r")
  if file then file:close() end
  return file ~= nil
end

--- Writes the file at `source` of `image` to a local path.
---@param image bough.image
---@param source string path in the image
---@param destination string? local path; a directory, or a path that ends in "/", receives the base name
---@return string path
function M.save(image, source, destination)
  local base = source:match("([^/]+)/*$")
  if not base or base == "." or base == ".." then
    errors.raise("invalid", "download", "%s names no file", errors.quote(source))
  end
  destination = destination == nil and base or destination
  if type(destination) ~= "string" or destination == "" then
    errors.raise("invalid", "download", "the destination must be a path, got %s",
      errors.quote(destination))
  end
  if destination:sub(-1) == "/" or is_directory(destination) then
    destination = destination:gsub("/*$", "") .. "/" .. base
  end
  local partial = ("%s.%p-%x.part"):format(destination, {}, os.time())
  -- the first chunk is asked for before anything is made, so that a missing source costs nothing
  local chunks = image:stream(source)
  local chunk = chunks()
  local file, message, number = io.open(partial, "wb")
  if not file then fail(destination, message, number) end
  local good, problem = pcall(function()
    while chunk do
      local written, why, code = file:write(chunk)
      if not written then fail(destination, why, code) end
      chunk = chunks()
    end
    local closed, why, code = file:close()
    if not closed then fail(destination, why, code) end
    local renamed, because, number2 = os.rename(partial, destination)
    if not renamed then fail(destination, because, number2) end
  end)
  if not good then
    if io.type(file) == "file" then file:close() end
    os.remove(partial)
    error(problem, 0)
  end
  return destination
end

return M
